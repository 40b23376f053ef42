-- Deletes: every read receipt

BEGIN;

DROP TABLE message_read_receipts;

UPDATE hubbub_schema_version SET version_num = '0004' WHERE version_num = '0005';

COMMIT;
