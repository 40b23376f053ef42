-- The feed of changes: the entries of all logs by the id of their transaction, and the positions of its consumers.
--
-- Every statement before BEGIN commits on its own and can be repeated. A column without a default writes no row, and the
-- default counts for the entries to come, also for those of the running application. Earlier entries are in neither index.
-- They are not in the feed.

ALTER TABLE messages ADD COLUMN IF NOT EXISTS transaction_id bigint;
ALTER TABLE messages ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id()::text::bigint;

ALTER TABLE room_events ADD COLUMN IF NOT EXISTS transaction_id bigint;
ALTER TABLE room_events ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id()::text::bigint;

ALTER TABLE hubbub_schema_version ADD COLUMN IF NOT EXISTS transaction_id_offset bigint NOT NULL DEFAULT 0;

CREATE INDEX CONCURRENTLY idx_messages_transaction_id_to_0020 ON messages (
    (get_byte(uuid_send(room_id), 15) & 15), transaction_id)
    WHERE transaction_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_room_events_transaction_id_to_0020 ON room_events (
    (get_byte(uuid_send(room_id), 15) & 15), transaction_id)
    WHERE transaction_id IS NOT NULL;

BEGIN;

ALTER INDEX idx_messages_transaction_id_to_0020 RENAME TO idx_messages_transaction_id;
ALTER INDEX idx_room_events_transaction_id_to_0020 RENAME TO idx_room_events_transaction_id;

CREATE TABLE hubbub_consumers (
    name varchar(100) NOT NULL,
    part integer NOT NULL,
    transaction_id bigint NOT NULL,
    room_id uuid NOT NULL,
    seq bigint NOT NULL,
    server bytea NOT NULL,
    read_at timestamptz NOT NULL,
    worker uuid,
    leased_until timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT hubbub_consumers_pkey PRIMARY KEY (name, part),
    CONSTRAINT hubbub_consumers_part_check CHECK (part BETWEEN 0 AND 15)
);

-- A role that was granted its rights before gets the new ones here.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT rolname FROM pg_class, aclexplode(relacl) AS acl, pg_roles
        WHERE pg_class.oid = 'rooms'::regclass AND pg_roles.oid = acl.grantee
            AND privilege_type = 'DELETE' AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON hubbub_consumers TO %I', grantee);
    END LOOP;
END $$;

UPDATE hubbub_schema_version SET version_num = '0020' WHERE version_num = '0019';

COMMIT;
