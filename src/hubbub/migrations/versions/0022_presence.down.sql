-- Deletes: nothing, as the table is in use only where rooms are distributed, which refuses this

BEGIN;

DROP TABLE hubbub_presence;

UPDATE hubbub_schema_version SET version_num = '0021' WHERE version_num = '0022';

COMMIT;
