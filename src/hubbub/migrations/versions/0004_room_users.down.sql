-- Deletes: every membership

BEGIN;

DROP TABLE room_users;

UPDATE hubbub_schema_version SET version_num = '0003' WHERE version_num = '0004';

COMMIT;
