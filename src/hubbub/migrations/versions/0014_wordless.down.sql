-- Deletes: the text of messages after their 20,000th character; a message without words gets a space
--
-- Each statement can be repeated, and locks the table for an instant. The rule holds for new rows at once.

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    ADD CONSTRAINT messages_content_check
        CHECK (CASE WHEN deleted_at IS NULL THEN char_length(content) BETWEEN 1 AND 20000 ELSE content = '' END)
        NOT VALID;

UPDATE messages
SET content = CASE content WHEN '' THEN ' ' ELSE left(content, 20000) END
WHERE deleted_at IS NULL
    AND (content = '' OR char_length(content) > 20000);

ALTER TABLE messages VALIDATE CONSTRAINT messages_content_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0013' WHERE version_num = '0014';

COMMIT;
