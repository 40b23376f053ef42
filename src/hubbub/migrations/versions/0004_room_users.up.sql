-- The members of rooms, in the original schema.

BEGIN;

CREATE TABLE room_users (
    room_id UUID REFERENCES rooms(id) ON DELETE CASCADE,
    user_id UUID REFERENCES users(id) ON DELETE CASCADE,
    joined_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    role VARCHAR(20) DEFAULT 'member',
    last_read_message_id UUID REFERENCES messages(id),
    PRIMARY KEY (room_id, user_id)
);

CREATE INDEX idx_room_users_user_id ON room_users(user_id);

UPDATE hubbub_schema_version SET version_num = '0004' WHERE version_num = '0003';

COMMIT;
