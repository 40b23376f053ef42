-- Deletes: which account of another system a user is, which users are bots or anonymous, names to show, and the
-- metadata of users, rooms and members

-- As an import stores users without an email or a password. The rules hold for new rows first.
ALTER TABLE users
    DROP CONSTRAINT IF EXISTS users_no_nulls_check,
    ADD CONSTRAINT users_no_nulls_check
        CHECK (email IS NOT NULL AND password_hash IS NOT NULL) NOT VALID;

UPDATE users
SET email = coalesce(email, replace(id::text, '-', '') || '@import.invalid'),
    password_hash = coalesce(password_hash, '!')
WHERE email IS NULL
    OR password_hash IS NULL;

ALTER TABLE users VALIDATE CONSTRAINT users_no_nulls_check;

ALTER TABLE users
    ALTER COLUMN email SET NOT NULL,
    ALTER COLUMN password_hash SET NOT NULL;

BEGIN;

ALTER TABLE users
    DROP CONSTRAINT users_no_nulls_check,
    DROP COLUMN external_id,
    DROP COLUMN kind,
    DROP COLUMN display_name,
    DROP COLUMN display_name_key,
    DROP COLUMN metadata;

ALTER TABLE rooms DROP COLUMN metadata;

ALTER TABLE room_users DROP COLUMN metadata;

UPDATE hubbub_schema_version SET version_num = '0016' WHERE version_num = '0017';

COMMIT;
