-- The key by which processes recognize the announcements of each other in Redis.

BEGIN;

-- It is in this table because every role that opens a hub reads the revision, also one that was granted its rights
-- before. The default is evaluated for the only row.
ALTER TABLE hubbub_schema_version
    ADD COLUMN announcement_key bytea NOT NULL
        DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

UPDATE hubbub_schema_version SET version_num = '0013' WHERE version_num = '0012';

COMMIT;
