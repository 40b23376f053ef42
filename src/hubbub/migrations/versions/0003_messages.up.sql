-- The table of messages, in the original schema.

BEGIN;

CREATE TABLE messages (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    room_id UUID REFERENCES rooms(id) ON DELETE CASCADE,
    user_id UUID REFERENCES users(id) ON DELETE SET NULL,
    content TEXT NOT NULL,
    message_type VARCHAR(20) DEFAULT 'text',
    is_edited BOOLEAN DEFAULT false,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX idx_messages_room_id ON messages(room_id);

CREATE INDEX idx_messages_user_id ON messages(user_id);

CREATE INDEX idx_messages_created_at ON messages(created_at DESC);

UPDATE hubbub_schema_version SET version_num = '0003' WHERE version_num = '0002';

COMMIT;
