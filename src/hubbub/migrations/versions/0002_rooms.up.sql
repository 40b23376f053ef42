-- The table of rooms, in the original schema.

BEGIN;

CREATE TABLE rooms (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    name VARCHAR(100) NOT NULL,
    description TEXT,
    is_private BOOLEAN DEFAULT false,
    created_by UUID REFERENCES users(id) ON DELETE SET NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX idx_rooms_created_by ON rooms(created_by);

CREATE INDEX idx_rooms_name ON rooms(name);

UPDATE hubbub_schema_version SET version_num = '0002' WHERE version_num = '0001';

COMMIT;
