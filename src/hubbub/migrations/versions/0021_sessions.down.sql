-- Deletes: the sessions of applications with DB_DURABLE_SESSIONS, whose users log in again

BEGIN;

DROP TABLE hubbub_sessions;

UPDATE hubbub_schema_version SET version_num = '0020' WHERE version_num = '0021';

COMMIT;
