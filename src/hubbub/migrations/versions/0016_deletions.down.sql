-- Deletes: nothing

-- refuse deletions: accounts and rooms whose deletion is not finished, which `hubbub maintain` does
SELECT id
FROM hubbub_deletions;

BEGIN;

DROP TABLE hubbub_deletions;

UPDATE hubbub_schema_version SET version_num = '0015' WHERE version_num = '0016';

COMMIT;
