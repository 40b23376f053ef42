-- Deletes: what messages reply to and their metadata, the receipts setting of rooms, which messages a member was
-- present for, and how far imports came

BEGIN;

DROP TABLE hubbub_imports;

ALTER TABLE messages
    DROP COLUMN reply_to,
    DROP COLUMN metadata;

ALTER TABLE rooms
    DROP COLUMN keeps_receipts;

ALTER TABLE room_users
    DROP COLUMN joined_seq;

UPDATE hubbub_schema_version SET version_num = '0010' WHERE version_num = '0011';

COMMIT;
