-- Deletes: which entries the feed of changes has, and the positions of its consumers

BEGIN;

DROP TABLE hubbub_consumers;

ALTER TABLE messages DROP COLUMN transaction_id;

ALTER TABLE room_events DROP COLUMN transaction_id;

ALTER TABLE hubbub_schema_version DROP COLUMN transaction_id_offset;

UPDATE hubbub_schema_version SET version_num = '0019' WHERE version_num = '0020';

COMMIT;
