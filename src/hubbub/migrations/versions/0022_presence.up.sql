-- Presence beside the accounts, for a database whose accounts are copied to several nodes.

BEGIN;

CREATE TABLE hubbub_presence (
    user_id uuid NOT NULL,
    is_online boolean NOT NULL,
    last_seen timestamptz NOT NULL,
    CONSTRAINT hubbub_presence_pkey PRIMARY KEY (user_id)
);

-- A role that was granted its rights before gets the new ones here.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT rolname FROM pg_class, aclexplode(relacl) AS acl, pg_roles
        WHERE pg_class.oid = 'rooms'::regclass AND pg_roles.oid = acl.grantee
            AND privilege_type = 'DELETE' AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON hubbub_presence TO %I', grantee);
    END LOOP;
END $$;

UPDATE hubbub_schema_version SET version_num = '0022' WHERE version_num = '0021';

COMMIT;
