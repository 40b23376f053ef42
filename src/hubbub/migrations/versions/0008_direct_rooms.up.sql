-- Two people have one direct room, also under a race: its key is the SHA-256 of their ids.

ALTER TABLE rooms
    ADD COLUMN IF NOT EXISTS direct_key bytea;

CREATE UNIQUE INDEX CONCURRENTLY rooms_direct_key_key_to_0008 ON rooms (direct_key);

BEGIN;

ALTER TABLE rooms
    ADD CONSTRAINT rooms_direct_key_key UNIQUE USING INDEX rooms_direct_key_key_to_0008;

UPDATE hubbub_schema_version SET version_num = '0008' WHERE version_num = '0007';

COMMIT;
