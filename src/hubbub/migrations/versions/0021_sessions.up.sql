-- Durable sessions: rows that decide, for applications with DB_DURABLE_SESSIONS.

BEGIN;

CREATE TABLE hubbub_sessions (
    id bytea NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    seen_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    ends_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    data json NOT NULL,
    CONSTRAINT hubbub_sessions_pkey PRIMARY KEY (id),
    CONSTRAINT hubbub_sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT hubbub_sessions_id_check CHECK (octet_length(id) = 32)
);

CREATE INDEX idx_hubbub_sessions_user_id ON hubbub_sessions (user_id, ends_at);
CREATE INDEX idx_hubbub_sessions_ends_at ON hubbub_sessions (ends_at);

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
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON hubbub_sessions TO %I', grantee);
    END LOOP;
END $$;

UPDATE hubbub_schema_version SET version_num = '0021' WHERE version_num = '0020';

COMMIT;
