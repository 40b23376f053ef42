-- What a row may hold: named rules, no NULL where there is a default, unique email and username in any case.
--
-- Rows that break a rule stop this revision before it has changed anything. After that every statement commits on
-- its own and can be repeated. A table is locked for an instant at a time, and its rows are checked while the
-- application keeps running.
--
-- White space means that of ASCII: any other character is white space or not by the locale of the server, and a rule
-- must not depend on that.

-- refuse email: emails that differ only in case
SELECT lower(email)
FROM users
GROUP BY lower(email)
HAVING count(*) > 1;

-- refuse username: usernames that differ only in case
SELECT lower(username)
FROM users
GROUP BY lower(username)
HAVING count(*) > 1;

-- refuse users_email_check: rows of users that break this rule
SELECT id
FROM users
WHERE NOT (position('@' IN email) BETWEEN 2 AND char_length(email) - 1);

-- refuse users_username_check: rows of users that break this rule
SELECT id
FROM users
WHERE NOT (username <> '' AND position('@' IN username) = 0 AND (username COLLATE "C") !~ '^\s|\s$');

-- refuse users_password_hash_check: rows of users that break this rule
SELECT id
FROM users
WHERE NOT (password_hash <> '');

-- refuse rooms_name_check: rows of rooms that break this rule
SELECT id
FROM rooms
WHERE NOT ((name COLLATE "C") ~ '\S');

-- refuse rooms_description_check: rows of rooms that break this rule
SELECT id
FROM rooms
WHERE NOT (char_length(description) <= 4000);

-- refuse rooms_last_seq_check: rows of rooms that break this rule
SELECT id
FROM rooms
WHERE NOT (last_seq >= 0);

-- refuse rooms_direct_key_check: rows of rooms that break this rule
SELECT id
FROM rooms
WHERE NOT (direct_key IS NULL OR (octet_length(direct_key) = 32 AND is_private));

-- refuse messages_content_check: rows of messages that break this rule
SELECT id
FROM messages
WHERE NOT (CASE WHEN deleted_at IS NULL THEN char_length(content) BETWEEN 1 AND 20000 ELSE content = '' END);

-- refuse messages_message_type_check: rows of messages that break this rule
SELECT id
FROM messages
WHERE NOT (message_type IN ('text', 'image', 'file'));

-- refuse messages_seq_check: rows of messages that break this rule
SELECT id
FROM messages
WHERE NOT (seq > 0);

-- refuse room_users_role_check: rows of room_users that break this rule
SELECT room_id, user_id
FROM room_users
WHERE NOT (role IN ('admin', 'moderator', 'member'));

-- refuse room_users_last_read_seq_check: rows of room_users that break this rule
SELECT room_id, user_id
FROM room_users
WHERE NOT (last_read_seq >= 0);

-- refuse room_events_seq_check: rows of room_events that break this rule
SELECT room_id, seq
FROM room_events
WHERE NOT (seq > 0);

-- refuse room_events_kind_check: rows of room_events that break this rule
SELECT room_id, seq
FROM room_events
WHERE NOT (kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed'));

CREATE UNIQUE INDEX CONCURRENTLY idx_users_email_to_0009 ON users (lower(email));

CREATE UNIQUE INDEX CONCURRENTLY idx_users_username_to_0009 ON users (lower(username));

-- The rules hold for new rows at once. Each table also gets a provisional rule, which makes SET NOT NULL quick.
ALTER TABLE users
    DROP CONSTRAINT IF EXISTS users_email_check,
    ADD CONSTRAINT users_email_check
        CHECK (position('@' IN email) BETWEEN 2 AND char_length(email) - 1) NOT VALID,
    DROP CONSTRAINT IF EXISTS users_username_check,
    ADD CONSTRAINT users_username_check
        CHECK (username <> '' AND position('@' IN username) = 0 AND (username COLLATE "C") !~ '^\s|\s$') NOT VALID,
    DROP CONSTRAINT IF EXISTS users_password_hash_check,
    ADD CONSTRAINT users_password_hash_check
        CHECK (password_hash <> '') NOT VALID,
    DROP CONSTRAINT IF EXISTS users_no_nulls_check,
    ADD CONSTRAINT users_no_nulls_check
        CHECK (is_online IS NOT NULL AND created_at IS NOT NULL AND updated_at IS NOT NULL) NOT VALID;

ALTER TABLE rooms
    DROP CONSTRAINT IF EXISTS rooms_name_check,
    ADD CONSTRAINT rooms_name_check
        CHECK ((name COLLATE "C") ~ '\S') NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_description_check,
    ADD CONSTRAINT rooms_description_check
        CHECK (char_length(description) <= 4000) NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_last_seq_check,
    ADD CONSTRAINT rooms_last_seq_check
        CHECK (last_seq >= 0) NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_direct_key_check,
    ADD CONSTRAINT rooms_direct_key_check
        CHECK (direct_key IS NULL OR (octet_length(direct_key) = 32 AND is_private)) NOT VALID,
    DROP CONSTRAINT IF EXISTS rooms_no_nulls_check,
    ADD CONSTRAINT rooms_no_nulls_check
        CHECK (is_private IS NOT NULL AND created_at IS NOT NULL AND updated_at IS NOT NULL) NOT VALID;

ALTER TABLE messages
    DROP CONSTRAINT IF EXISTS messages_content_check,
    ADD CONSTRAINT messages_content_check
        CHECK (CASE WHEN deleted_at IS NULL THEN char_length(content) BETWEEN 1 AND 20000 ELSE content = '' END)
        NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_message_type_check,
    ADD CONSTRAINT messages_message_type_check
        CHECK (message_type IN ('text', 'image', 'file')) NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_seq_check,
    ADD CONSTRAINT messages_seq_check
        CHECK (seq > 0) NOT VALID,
    DROP CONSTRAINT IF EXISTS messages_no_nulls_check,
    ADD CONSTRAINT messages_no_nulls_check
        CHECK (
            message_type IS NOT NULL
            AND is_edited IS NOT NULL
            AND created_at IS NOT NULL
            AND updated_at IS NOT NULL
        )
        NOT VALID;

ALTER TABLE room_users
    DROP CONSTRAINT IF EXISTS room_users_role_check,
    ADD CONSTRAINT room_users_role_check
        CHECK (role IN ('admin', 'moderator', 'member')) NOT VALID,
    DROP CONSTRAINT IF EXISTS room_users_last_read_seq_check,
    ADD CONSTRAINT room_users_last_read_seq_check
        CHECK (last_read_seq >= 0) NOT VALID,
    DROP CONSTRAINT IF EXISTS room_users_no_nulls_check,
    ADD CONSTRAINT room_users_no_nulls_check
        CHECK (joined_at IS NOT NULL AND role IS NOT NULL) NOT VALID;

ALTER TABLE room_events
    DROP CONSTRAINT IF EXISTS room_events_seq_check,
    ADD CONSTRAINT room_events_seq_check
        CHECK (seq > 0) NOT VALID,
    DROP CONSTRAINT IF EXISTS room_events_kind_check,
    ADD CONSTRAINT room_events_kind_check
        CHECK (kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed')) NOT VALID;

ALTER TABLE message_read_receipts
    DROP CONSTRAINT IF EXISTS message_read_receipts_no_nulls_check,
    ADD CONSTRAINT message_read_receipts_no_nulls_check
        CHECK (read_at IS NOT NULL) NOT VALID;

-- A NULL in a column that has a default in the original schema becomes that default.
UPDATE users
SET is_online = coalesce(is_online, false),
    created_at = coalesce(created_at, CURRENT_TIMESTAMP),
    updated_at = coalesce(updated_at, CURRENT_TIMESTAMP)
WHERE is_online IS NULL
    OR created_at IS NULL
    OR updated_at IS NULL;

UPDATE rooms
SET is_private = coalesce(is_private, false),
    created_at = coalesce(created_at, CURRENT_TIMESTAMP),
    updated_at = coalesce(updated_at, CURRENT_TIMESTAMP)
WHERE is_private IS NULL
    OR created_at IS NULL
    OR updated_at IS NULL;

UPDATE messages
SET message_type = coalesce(message_type, 'text'),
    is_edited = coalesce(is_edited, false),
    created_at = coalesce(created_at, CURRENT_TIMESTAMP),
    updated_at = coalesce(updated_at, CURRENT_TIMESTAMP)
WHERE message_type IS NULL
    OR is_edited IS NULL
    OR created_at IS NULL
    OR updated_at IS NULL;

UPDATE room_users
SET joined_at = coalesce(joined_at, CURRENT_TIMESTAMP),
    role = coalesce(role, 'member')
WHERE joined_at IS NULL
    OR role IS NULL;

UPDATE message_read_receipts
SET read_at = coalesce(read_at, CURRENT_TIMESTAMP)
WHERE read_at IS NULL;

ALTER TABLE users VALIDATE CONSTRAINT users_email_check;
ALTER TABLE users VALIDATE CONSTRAINT users_username_check;
ALTER TABLE users VALIDATE CONSTRAINT users_password_hash_check;
ALTER TABLE users VALIDATE CONSTRAINT users_no_nulls_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_name_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_description_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_last_seq_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_direct_key_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_no_nulls_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_content_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_message_type_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_seq_check;
ALTER TABLE messages VALIDATE CONSTRAINT messages_no_nulls_check;
ALTER TABLE room_users VALIDATE CONSTRAINT room_users_role_check;
ALTER TABLE room_users VALIDATE CONSTRAINT room_users_last_read_seq_check;
ALTER TABLE room_users VALIDATE CONSTRAINT room_users_no_nulls_check;
ALTER TABLE room_events VALIDATE CONSTRAINT room_events_seq_check;
ALTER TABLE room_events VALIDATE CONSTRAINT room_events_kind_check;
ALTER TABLE message_read_receipts VALIDATE CONSTRAINT message_read_receipts_no_nulls_check;

-- The provisional rule proves that there is no NULL, so no row is read again. It is dropped in a statement of its
-- own: one ALTER for both would drop it first, and then read every row under an exclusive lock.
ALTER TABLE users
    ALTER COLUMN is_online SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE users DROP CONSTRAINT users_no_nulls_check;

ALTER TABLE rooms
    ALTER COLUMN is_private SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE rooms DROP CONSTRAINT rooms_no_nulls_check;

ALTER TABLE messages
    ALTER COLUMN message_type SET NOT NULL,
    ALTER COLUMN is_edited SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL,
    ALTER COLUMN updated_at SET NOT NULL;
ALTER TABLE messages DROP CONSTRAINT messages_no_nulls_check;

ALTER TABLE room_users
    ALTER COLUMN joined_at SET NOT NULL,
    ALTER COLUMN role SET NOT NULL;
ALTER TABLE room_users DROP CONSTRAINT room_users_no_nulls_check;

ALTER TABLE message_read_receipts
    ALTER COLUMN read_at SET NOT NULL;
ALTER TABLE message_read_receipts DROP CONSTRAINT message_read_receipts_no_nulls_check;

BEGIN;

ALTER TABLE users DROP CONSTRAINT users_email_key;
ALTER TABLE users DROP CONSTRAINT users_username_key;

DROP INDEX IF EXISTS idx_users_email;
ALTER INDEX idx_users_email_to_0009 RENAME TO idx_users_email;

DROP INDEX IF EXISTS idx_users_username;
ALTER INDEX idx_users_username_to_0009 RENAME TO idx_users_username;

UPDATE hubbub_schema_version SET version_num = '0009' WHERE version_num = '0008';

COMMIT;
