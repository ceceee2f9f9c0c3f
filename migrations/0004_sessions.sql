-- A shard may have several sessions with the broker. shard_lease.filters has those of the first; what the
-- others may have stands here, each filter behind the session's number: '1:plant/+/telem'.

ALTER TABLE penstock.shard_lease ADD COLUMN more_filters text[] NOT NULL DEFAULT '{}';
