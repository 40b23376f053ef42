-- Accounts of other systems, without an email or a password; names to show, and metadata of users, rooms and members.
--
-- Every statement before BEGIN commits on its own and can be repeated. No two tables are locked at once, and each only for an
-- instant: a column with a constant default writes no row. Rows are checked while the application keeps running.

ALTER TABLE users
    ALTER COLUMN email DROP NOT NULL,
    ALTER COLUMN password_hash DROP NOT NULL,
    ADD COLUMN IF NOT EXISTS external_id text,
    ADD COLUMN IF NOT EXISTS kind varchar(20) NOT NULL DEFAULT 'person',
    ADD COLUMN IF NOT EXISTS display_name varchar(100),
    ADD COLUMN IF NOT EXISTS display_name_key text,
    ADD COLUMN IF NOT EXISTS metadata jsonb,
    DROP CONSTRAINT IF EXISTS users_external_id_check,
    ADD CONSTRAINT users_external_id_check
        CHECK (char_length(external_id) BETWEEN 1 AND 255) NOT VALID,
    DROP CONSTRAINT IF EXISTS users_kind_check,
    ADD CONSTRAINT users_kind_check
        CHECK (kind IN ('person', 'bot', 'anonymous')) NOT VALID,
    DROP CONSTRAINT IF EXISTS users_display_name_check,
    ADD CONSTRAINT users_display_name_check
        CHECK (display_name <> '' AND char_length(display_name_key) <= 100) NOT VALID,
    DROP CONSTRAINT IF EXISTS users_metadata_check,
    ADD CONSTRAINT users_metadata_check
        CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536) NOT VALID;

ALTER TABLE rooms
    ADD COLUMN IF NOT EXISTS metadata jsonb,
    DROP CONSTRAINT IF EXISTS rooms_metadata_check,
    ADD CONSTRAINT rooms_metadata_check
        CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536) NOT VALID;

ALTER TABLE room_users
    ADD COLUMN IF NOT EXISTS metadata jsonb,
    DROP CONSTRAINT IF EXISTS room_users_metadata_check,
    ADD CONSTRAINT room_users_metadata_check
        CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536) NOT VALID;

ALTER TABLE users VALIDATE CONSTRAINT users_external_id_check;
ALTER TABLE users VALIDATE CONSTRAINT users_kind_check;
ALTER TABLE users VALIDATE CONSTRAINT users_display_name_check;
ALTER TABLE users VALIDATE CONSTRAINT users_metadata_check;
ALTER TABLE rooms VALIDATE CONSTRAINT rooms_metadata_check;
ALTER TABLE room_users VALIDATE CONSTRAINT room_users_metadata_check;

-- Most users have neither, and are in neither index.
CREATE UNIQUE INDEX CONCURRENTLY idx_users_external_id_to_0017 ON users (external_id COLLATE "C")
    WHERE external_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_users_display_name_to_0017 ON users (display_name_key COLLATE "C", id)
    WHERE display_name_key IS NOT NULL;

BEGIN;

ALTER INDEX idx_users_external_id_to_0017 RENAME TO idx_users_external_id;
ALTER INDEX idx_users_display_name_to_0017 RENAME TO idx_users_display_name;

UPDATE hubbub_schema_version SET version_num = '0017' WHERE version_num = '0016';

COMMIT;
