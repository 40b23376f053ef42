-- Deletes: every message

BEGIN;

DROP TABLE messages;

UPDATE hubbub_schema_version SET version_num = '0002' WHERE version_num = '0003';

COMMIT;
