-- Deletes: the order of the log in each room, all its events except messages, and deleted messages for good

CREATE INDEX CONCURRENTLY idx_messages_room_id_to_0005 ON messages (room_id);

-- For the foreign key alone, which looks for the readers of each deleted message.
CREATE INDEX CONCURRENTLY idx_room_users_last_read_message_id_to_0005 ON room_users (last_read_message_id)
    WHERE last_read_message_id IS NOT NULL;

BEGIN;

-- Without `deleted_at` a tombstone would come back as an empty message. A member who has read up to a tombstone has
-- read up to the message before it.
UPDATE room_users
SET last_read_message_id = (
    SELECT before.id
    FROM messages AS before
    WHERE before.room_id = deleted.room_id
        AND before.seq < deleted.seq
        AND before.deleted_at IS NULL
    ORDER BY before.seq DESC
    LIMIT 1
)
FROM messages AS deleted
WHERE deleted.id = room_users.last_read_message_id
    AND deleted.deleted_at IS NOT NULL;

DELETE FROM messages
WHERE deleted_at IS NOT NULL;

DROP INDEX idx_room_users_last_read_message_id_to_0005;

DROP TABLE room_events;

ALTER TABLE messages
    DROP CONSTRAINT idx_messages_room_id,
    ALTER COLUMN room_id DROP NOT NULL,
    DROP COLUMN seq,
    DROP COLUMN deleted_at;

ALTER TABLE rooms
    DROP COLUMN last_seq;

ALTER INDEX idx_messages_room_id_to_0005 RENAME TO idx_messages_room_id;

UPDATE hubbub_schema_version SET version_num = '0005' WHERE version_num = '0006';

COMMIT;
