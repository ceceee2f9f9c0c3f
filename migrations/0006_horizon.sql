-- How far back samples are all there. A rollup that is refreshed from further back is computed from what is
-- left, and its history is lost: a retention that becomes longer must not let it reach there.
CREATE TABLE penstock.horizon (
  id boolean PRIMARY KEY DEFAULT true CHECK (id),
  -- Samples from before may have been removed.
  at timestamptz NOT NULL
);

-- A payload that was cut for its size comes back whole when its message comes again: see roles.sql.
