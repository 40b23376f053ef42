-- Deletes: which rooms are the direct rooms of two people; the rooms themselves stay

BEGIN;

ALTER TABLE rooms
    DROP COLUMN direct_key;

UPDATE hubbub_schema_version SET version_num = '0007' WHERE version_num = '0008';

COMMIT;
