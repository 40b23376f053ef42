-- The receipts of read messages, in the original schema.

BEGIN;

CREATE TABLE message_read_receipts (
    message_id UUID REFERENCES messages(id) ON DELETE CASCADE,
    user_id UUID REFERENCES users(id) ON DELETE CASCADE,
    read_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (message_id, user_id)
);

UPDATE hubbub_schema_version SET version_num = '0005' WHERE version_num = '0004';

COMMIT;
