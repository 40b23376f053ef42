-- Deletes: every room

BEGIN;

DROP TABLE rooms;

UPDATE hubbub_schema_version SET version_num = '0001' WHERE version_num = '0002';

COMMIT;
