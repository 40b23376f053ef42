-- Deletes: nothing
--
-- Each statement can be repeated, and locks one table for an instant. Rows are checked while the application runs.

ALTER TABLE rooms
    DROP CONSTRAINT IF EXISTS rooms_name_check,
    ADD CONSTRAINT rooms_name_check
        CHECK ((name COLLATE "C") ~ '\S') NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_description_check,
    ADD CONSTRAINT rooms_description_check
        CHECK (char_length(description) <= 4000) NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_direct_key_check,
    ADD CONSTRAINT rooms_direct_key_check
        CHECK (direct_key IS NULL OR (octet_length(direct_key) = 32 AND is_private)) NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_metadata_check,
    ADD CONSTRAINT rooms_metadata_check
        CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536) NOT VALID;

DROP TRIGGER IF EXISTS hubbub_check_room ON rooms;

DROP FUNCTION IF EXISTS hubbub_check_room();

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    ADD CONSTRAINT messages_content_check
        CHECK (
            CASE
                WHEN deleted_at IS NOT NULL THEN content = ''
                WHEN content = '' THEN metadata IS NOT NULL OR message_type <> 'text'
                ELSE char_length(content) <= 65536
            END
        ) NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_message_type_check,
    ADD CONSTRAINT messages_message_type_check
        CHECK (message_type IN ('text', 'image', 'file')) NOT VALID;

ALTER TABLE rooms VALIDATE CONSTRAINT rooms_name_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_description_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_direct_key_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_metadata_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_content_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_message_type_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0018' WHERE version_num = '0019';

COMMIT;
