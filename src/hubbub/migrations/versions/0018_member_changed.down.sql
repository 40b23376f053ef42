-- Deletes: the metadata in the log entries about memberships, which become changes to the role that the member has
--
-- Each statement can be repeated, and locks the table for an instant. The rule holds for new rows at once.

ALTER TABLE room_events
    DROP CONSTRAINT IF EXISTS room_events_kind_check,
    ADD CONSTRAINT room_events_kind_check
        CHECK (kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed')) NOT VALID;

UPDATE room_events
SET kind = 'role_changed',
    payload = jsonb_build_object(
        'role',
        coalesce(
            (
                SELECT role
                FROM room_users
                WHERE room_users.room_id = room_events.room_id
                    AND room_users.user_id = room_events.user_id
            ),
            'member'
        )
    )
WHERE kind = 'member_changed';

ALTER TABLE room_events VALIDATE CONSTRAINT room_events_kind_check;

BEGIN;

UPDATE hubbub_schema_version SET version_num = '0017' WHERE version_num = '0018';

COMMIT;
