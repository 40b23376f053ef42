-- Replies and metadata of messages, receipts as a room asks for them, and how far an import came.
--
-- Every statement before BEGIN commits on its own and can be repeated. No two tables are locked at once, and each
-- only for an instant. Rows are checked while the application keeps running.
--
-- hubbub takes 8 KiB of JSON as metadata. The rule is about the text that a reader gets, which can be longer:
-- PostgreSQL writes a space after each comma and colon, and 1e308 with all of its zeros. pg_column_size would not
-- do: it gives a smaller size for the same value once it is compressed, so a dump might not be restored.

ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS reply_to uuid,
    ADD COLUMN IF NOT EXISTS metadata jsonb,
    DROP CONSTRAINT IF EXISTS messages_metadata_check,
    ADD CONSTRAINT messages_metadata_check
        CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536) NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_reply_to_check,
    ADD CONSTRAINT messages_reply_to_check
        CHECK (reply_to <> id) NOT VALID;

ALTER TABLE rooms
    ADD COLUMN IF NOT EXISTS keeps_receipts boolean;

ALTER TABLE room_users
    ADD COLUMN IF NOT EXISTS joined_seq bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT IF EXISTS room_users_joined_seq_check,
    ADD CONSTRAINT room_users_joined_seq_check
        CHECK (joined_seq >= 0) NOT VALID;

ALTER TABLE messages VALIDATE CONSTRAINT messages_metadata_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_reply_to_check;
ALTER TABLE room_users VALIDATE CONSTRAINT room_users_joined_seq_check;

BEGIN;

CREATE TABLE hubbub_imports (
    digest bytea PRIMARY KEY,
    lines bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT hubbub_imports_digest_check CHECK (octet_length(digest) = 32),
    CONSTRAINT hubbub_imports_lines_check CHECK (lines > 0)
);

UPDATE hubbub_schema_version SET version_num = '0011' WHERE version_num = '0010';

COMMIT;
