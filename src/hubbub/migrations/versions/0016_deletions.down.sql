-- Deletes: nothing

-- refuse deletions: accounts and rooms whose deletion is not finished, which `hubbub maintain` does
SELECT id
FROM hubbub_deletions;

BEGIN;

-- A deletion that was begun meanwhile ends the transaction: its rows would be visible again.
LOCK TABLE hubbub_deletions IN ACCESS EXCLUSIVE MODE;

DO $$
BEGIN
    IF EXISTS (SELECT FROM hubbub_deletions) THEN
        RAISE EXCEPTION 'deletions are not finished: run hubbub maintain';
    END IF;
END $$;

DROP TABLE hubbub_deletions;

UPDATE hubbub_schema_version SET version_num = '0015' WHERE version_num = '0016';

COMMIT;
