-- Deletes: nothing

CREATE UNIQUE INDEX CONCURRENTLY users_email_key_to_0008 ON users (email);

CREATE UNIQUE INDEX CONCURRENTLY users_username_key_to_0008 ON users (username);

CREATE INDEX CONCURRENTLY idx_users_email_to_0008 ON users (email);

CREATE INDEX CONCURRENTLY idx_users_username_to_0008 ON users (username);

ALTER TABLE users
    DROP CONSTRAINT IF EXISTS users_email_check,
    DROP CONSTRAINT IF EXISTS users_username_check,
    DROP CONSTRAINT IF EXISTS users_password_hash_check;

ALTER TABLE rooms
    DROP CONSTRAINT IF EXISTS rooms_name_check,
    DROP CONSTRAINT IF EXISTS rooms_description_check,
    DROP CONSTRAINT IF EXISTS rooms_last_seq_check,
    DROP CONSTRAINT IF EXISTS rooms_direct_key_check;

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    DROP CONSTRAINT IF EXISTS messages_message_type_check,
    DROP CONSTRAINT IF EXISTS messages_seq_check;

ALTER TABLE room_users
    DROP CONSTRAINT IF EXISTS room_users_role_check,
    DROP CONSTRAINT IF EXISTS room_users_last_read_seq_check;

ALTER TABLE room_events
    DROP CONSTRAINT IF EXISTS room_events_seq_check,
    DROP CONSTRAINT IF EXISTS room_events_kind_check;

ALTER TABLE users
    ALTER COLUMN is_online DROP NOT NULL,
    ALTER COLUMN created_at DROP NOT NULL,
    ALTER COLUMN updated_at DROP NOT NULL;

ALTER TABLE rooms
    ALTER COLUMN is_private DROP NOT NULL,
    ALTER COLUMN created_at DROP NOT NULL,
    ALTER COLUMN updated_at DROP NOT NULL;

ALTER TABLE messages
    ALTER COLUMN message_type DROP NOT NULL,
    ALTER COLUMN is_edited DROP NOT NULL,
    ALTER COLUMN created_at DROP NOT NULL,
    ALTER COLUMN updated_at DROP NOT NULL;

ALTER TABLE room_users
    ALTER COLUMN joined_at DROP NOT NULL,
    ALTER COLUMN role DROP NOT NULL;

ALTER TABLE message_read_receipts
    ALTER COLUMN read_at DROP NOT NULL;

BEGIN;

ALTER TABLE users ADD CONSTRAINT users_email_key UNIQUE USING INDEX users_email_key_to_0008;
ALTER TABLE users ADD CONSTRAINT users_username_key UNIQUE USING INDEX users_username_key_to_0008;

DROP INDEX IF EXISTS idx_users_email;
ALTER INDEX idx_users_email_to_0008 RENAME TO idx_users_email;

DROP INDEX IF EXISTS idx_users_username;
ALTER INDEX idx_users_username_to_0008 RENAME TO idx_users_username;

UPDATE hubbub_schema_version SET version_num = '0008' WHERE version_num = '0009';

COMMIT;
