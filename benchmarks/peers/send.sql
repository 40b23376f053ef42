-- The work of one send of hubbub in one statement: check the membership, take the seq under the room's lock, insert the
-- message. This is the best that a peer can do without sharing statements.
WITH head AS (
    UPDATE rooms
    SET last_seq = last_seq + 1
    WHERE id = $2
        AND EXISTS (SELECT 1 FROM room_users WHERE room_id = $2 AND user_id = $3)
    RETURNING last_seq
)
INSERT INTO messages (id, room_id, seq, user_id, content, message_type)
SELECT $1, $2, last_seq, $3, $4, $5
FROM head
RETURNING id, room_id, seq, user_id, content, message_type, is_edited, created_at, updated_at
