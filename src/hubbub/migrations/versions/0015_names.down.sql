-- Deletes: the keys of usernames, which the next `up` computes again

CREATE UNIQUE INDEX CONCURRENTLY idx_users_email_to_0014 ON users (lower(email));

CREATE UNIQUE INDEX CONCURRENTLY idx_users_username_to_0014 ON users (lower(username));

CREATE INDEX CONCURRENTLY idx_rooms_name_to_0014 ON rooms (name, id) WHERE NOT is_private;

BEGIN;

DROP INDEX IF EXISTS idx_users_email;
ALTER INDEX idx_users_email_to_0014 RENAME TO idx_users_email;

DROP INDEX IF EXISTS idx_users_username;
ALTER INDEX idx_users_username_to_0014 RENAME TO idx_users_username;

DROP INDEX IF EXISTS idx_rooms_name;
ALTER INDEX idx_rooms_name_to_0014 RENAME TO idx_rooms_name;

ALTER TABLE users
    DROP COLUMN username_key,
    DROP COLUMN username_key_of;

UPDATE hubbub_schema_version SET version_num = '0014' WHERE version_num = '0015';

COMMIT;
