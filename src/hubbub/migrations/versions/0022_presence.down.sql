-- Deletes: nothing. The table is used only where rooms are distributed, and this is refused there

BEGIN;

DROP TABLE hubbub_presence;

UPDATE hubbub_schema_version SET version_num = '0021' WHERE version_num = '0022';

COMMIT;
