CREATE TABLE finial_meta (name varchar(255) NOT NULL PRIMARY KEY, value varchar(255) NOT NULL) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8;
CREATE TABLE finial_issued (seq bigint NOT NULL PRIMARY KEY, serial varchar(255) NOT NULL, spiffe_id varchar(2048) NOT NULL, entry_id varchar(255) NOT NULL, entry_revision bigint NOT NULL, agent_id varchar(2048) NOT NULL, authority_id varchar(255) NOT NULL, not_before bigint NOT NULL, not_after bigint NOT NULL, key_fingerprint varchar(64) NOT NULL, kind varchar(32) NOT NULL, hash varchar(64) NOT NULL) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8;
CREATE INDEX idx_finial_issued_not_after ON finial_issued(not_after);
CREATE INDEX idx_finial_issued_serial ON finial_issued(serial);
