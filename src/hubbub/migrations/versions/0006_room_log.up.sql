-- Each room is one ordered log: every message and every other durable change takes the next seq of its room.
--
-- On a filled database this numbers all messages, in one transaction that holds `rooms` and `messages`. It is the
-- one revision to plan a quiet minute for (docs/migrations.md). Avoiding the lock would gain nothing, because an
-- application that does not write a seq cannot write messages afterwards.

-- refuse room_id: messages without a room
SELECT id
FROM messages
WHERE room_id IS NULL;

BEGIN;

-- The tables are locked in the order in which an INSERT of a message locks them, so that the two do not deadlock.
ALTER TABLE messages
    ADD COLUMN seq bigint,
    ADD COLUMN deleted_at timestamptz;

ALTER TABLE rooms
    ADD COLUMN last_seq bigint NOT NULL DEFAULT 0;

UPDATE messages
SET seq = numbered.seq
FROM (
    SELECT
        id,
        row_number() OVER (PARTITION BY room_id ORDER BY created_at, id) AS seq
    FROM messages
) AS numbered
WHERE numbered.id = messages.id;

UPDATE rooms
SET last_seq = heads.seq
FROM (
    SELECT
        room_id,
        max(seq) AS seq
    FROM messages
    GROUP BY room_id
) AS heads
WHERE heads.room_id = rooms.id;

DROP INDEX idx_messages_room_id;

ALTER TABLE messages
    ALTER COLUMN room_id SET NOT NULL,
    ALTER COLUMN seq SET NOT NULL,
    ADD CONSTRAINT idx_messages_room_id UNIQUE (room_id, seq);

CREATE TABLE room_events (
    room_id uuid NOT NULL REFERENCES rooms (id) ON DELETE CASCADE,
    seq bigint NOT NULL,
    kind varchar(20) NOT NULL,
    message_id uuid,
    user_id uuid,
    payload jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (room_id, seq)
);

UPDATE hubbub_schema_version SET version_num = '0006' WHERE version_num = '0005';

COMMIT;
