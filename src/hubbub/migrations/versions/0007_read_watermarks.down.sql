-- Deletes: how far each member has read, unless a last read message records it

ALTER TABLE room_users
    DROP CONSTRAINT room_users_last_read_message_id_fkey,
    ADD CONSTRAINT room_users_last_read_message_id_fkey
        FOREIGN KEY (last_read_message_id) REFERENCES messages (id) NOT VALID;

ALTER TABLE room_users VALIDATE CONSTRAINT room_users_last_read_message_id_fkey;

BEGIN;

ALTER TABLE message_read_receipts
    DROP COLUMN room_id;

DROP INDEX idx_room_users_last_read_message_id;

ALTER TABLE room_users
    DROP COLUMN last_read_seq;

UPDATE hubbub_schema_version SET version_num = '0006' WHERE version_num = '0007';

COMMIT;
