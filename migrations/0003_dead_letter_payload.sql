-- All letters of one message, for replay and for removing a payload with its last letter.
CREATE INDEX dead_letter_payload_digest_idx ON penstock.dead_letter (payload_digest);
