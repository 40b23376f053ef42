-- Deletes: the key of announcements

BEGIN;

ALTER TABLE hubbub_schema_version
    DROP COLUMN announcement_key;

UPDATE hubbub_schema_version SET version_num = '0012' WHERE version_num = '0013';

COMMIT;
