-- Deletes: every user

BEGIN;

-- The version table stays, without a row.
DROP TABLE users;

DELETE FROM hubbub_schema_version WHERE version_num = '0001';

COMMIT;
