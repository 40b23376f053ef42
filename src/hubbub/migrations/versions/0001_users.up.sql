-- The table of users, in the original schema.

BEGIN;

CREATE TABLE IF NOT EXISTS hubbub_schema_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT hubbub_schema_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE users (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    email VARCHAR(255) UNIQUE NOT NULL,
    username VARCHAR(50) UNIQUE NOT NULL,
    password_hash VARCHAR(255) NOT NULL,
    avatar_url VARCHAR(500),
    is_online BOOLEAN DEFAULT false,
    last_seen TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX idx_users_email ON users(email);

CREATE INDEX idx_users_username ON users(username);

INSERT INTO hubbub_schema_version (version_num) VALUES ('0001');

COMMIT;
