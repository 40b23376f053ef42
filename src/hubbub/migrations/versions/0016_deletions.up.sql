-- Accounts and rooms that are hidden while their rows are deleted in steps.

BEGIN;

CREATE TABLE hubbub_deletions (
    id uuid NOT NULL,
    is_room boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT hubbub_deletions_pkey PRIMARY KEY (id)
);

-- Nearly every statement reads the table. So a role that was granted its rights before gets the new ones here.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT rolname FROM pg_class, aclexplode(relacl) AS acl, pg_roles
        WHERE pg_class.oid = 'rooms'::regclass AND pg_roles.oid = acl.grantee
            AND privilege_type = 'DELETE' AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON hubbub_deletions TO %I', grantee);
        EXECUTE format('GRANT DELETE ON messages, room_events TO %I', grantee);
    END LOOP;
END $$;

UPDATE hubbub_schema_version SET version_num = '0016' WHERE version_num = '0015';

COMMIT;
