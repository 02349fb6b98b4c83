//! What the host tells: its log.
