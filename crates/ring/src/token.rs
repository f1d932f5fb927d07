//! What a completion belongs to: the `user_data` of an entry.

/// Bits of [`Token::id`]; the kind lies above.
const ID_BITS: u32 = 56;

/// Who gets a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// An I/O of the thread's lane; the lane chose the id (below 2^56).
    Lane(u64),
    /// A watched eventfd became readable; the watcher chose the id.
    Event(u64),
    /// A timer ran out; the owner chose the id.
    Timer(u64),
    /// Nobody waits for it.
    Ignored,
}

impl Token {
    pub(crate) fn pack(self) -> u64 {
        let (kind, id) = match self {
            Self::Lane(id) => (0, id),
            Self::Event(id) => (1, id),
            Self::Timer(id) => (2, id),
            Self::Ignored => (3, 0),
        };
        debug_assert!(id >> ID_BITS == 0, "a token's id has 56 bits");
        kind << ID_BITS | id
    }

    pub(crate) fn unpack(user_data: u64) -> Self {
        let id = user_data & ((1 << ID_BITS) - 1);
        match user_data >> ID_BITS {
            0 => Self::Lane(id),
            1 => Self::Event(id),
            2 => Self::Timer(id),
            _ => Self::Ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for token in [
            Token::Lane(0),
            Token::Lane((1 << ID_BITS) - 1),
            Token::Event(7),
            Token::Timer(9),
            Token::Ignored,
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
