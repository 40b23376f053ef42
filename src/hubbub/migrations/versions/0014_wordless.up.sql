-- Messages without words that have metadata or are an image or a file, and longer messages of other systems.
--
-- Each statement can be repeated, and locks the table for an instant. Rows are checked while the application runs.

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    ADD CONSTRAINT messages_content_check
        CHECK (
            CASE
                WHEN deleted_at IS NOT NULL THEN content = ''
                WHEN content = '' THEN metadata IS NOT NULL OR message_type <> 'text'
                ELSE char_length(content) <= 65536
            END
        ) NOT VALID;

ALTER TABLE messages VALIDATE CONSTRAINT messages_content_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0014' WHERE version_num = '0013';

COMMIT;
