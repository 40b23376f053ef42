-- A kind of entry in the log of a room: a membership has other metadata.
--
-- Each statement can be repeated, and locks the table for an instant. Rows are checked while the application runs, and
-- processes of the version before pass over entries of a kind that they do not know.

ALTER TABLE room_events
    DROP CONSTRAINT IF EXISTS room_events_kind_check,
    ADD CONSTRAINT room_events_kind_check
        CHECK (
            kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed', 'member_changed')
        ) NOT VALID;

ALTER TABLE room_events VALIDATE CONSTRAINT room_events_kind_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0018' WHERE version_num = '0017';

COMMIT;
