//! What a failed call says: why it failed, and whether it ran.
//!
//! Every failure of a call carries [`Executed`]. The numbers of [`Cause`] and [`Executed`] cross process and machine
//! boundaries and never change their meaning.

use serde::{Deserialize, Serialize};

/// Whether a failed call had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Executed {
    /// It did not happen and never will. Safe to try again.
    No = 0,
    /// It happened; only its answer is missing or is an error.
    Yes = 1,
    /// Nobody can say. Try again only what may run twice.
    Unknown = 2,
}

impl Executed {
    /// The value with this number. A number that nobody assigned reads as [`Executed::Unknown`], the cautious answer.
    pub const fn from_number(number: u8) -> Executed {
        match number {
            0 => Executed::No,
            1 => Executed::Yes,
            _ => Executed::Unknown,
        }
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a call failed outside of its operation's own errors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Cause {
            $($(#[$doc])* $name,)*
            /// Too much waits already, at the host or for it. A call that a session refuses for this did not run, and may be
            /// made again whatever it does; of a handler's own refusal `executed` says that, as always.
            Busy {
                /// Microseconds after which that is worth a try: about what waits now will have been served then. 0: not known.
                retry_after_us: u32,
            },
            /// The request was under way at two crashes of its host, and does not run again.
            Poisoned {
                /// The number of the last one, which `atoll crash show` takes; 0 if nobody knows it.
                crash: u32,
            },
            /// The earlier call that was to bring a capability for this one has ended with an error of its operation. What that
            /// means its own answer says. (If it failed otherwise, this one fails with the same cause.)
            EarlierError {
                /// The number of the error, of the earlier call's operation.
                error: u16,
            },
        }

        impl Cause {
            /// Its number.
            pub const fn number(self) -> u16 {
                match self {
                    $(Cause::$name => $number,)*
                    Cause::Busy { .. } => BUSY,
                    Cause::Poisoned { .. } => POISONED,
                    Cause::EarlierError { .. } => EARLIER_ERROR,
                }
            }

            /// The cause with this number and [detail](Self::detail), if there is one.
            pub const fn from_number(number: u16, detail: u32) -> Option<Cause> {
                match (number, detail) {
                    $(($number, 0) => Some(Cause::$name),)*
                    (BUSY, retry_after_us) => Some(Cause::Busy { retry_after_us }),
                    (POISONED, crash) => Some(Cause::Poisoned { crash }),
                    (EARLIER_ERROR, error @ 0..=0xFFFF) => Some(Cause::EarlierError { error: error as u16 }),
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for Cause {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Cause::$name => f.write_str($text),)*
                    Cause::Busy { .. } => f.write_str("the host is busy"),
                    Cause::Poisoned { crash: 0 } => f.write_str(QUARANTINED),
                    Cause::Poisoned { crash } => write!(f, "{QUARANTINED} (crash {crash})"),
                    Cause::EarlierError { error } => write!(f, "the call that it depends on ended with its error {error}"),
                }
            }
        }
    };
}

causes! {
    /// The capability lacks a right that the operation requires.
    RightsMissing = 1, "the capability lacks a required right";
    /// The handle names no capability of this session (released, revoked, or never given).
    StaleHandle = 2, "the handle names no capability of this session";
    /// The handle's object is of another kind than the operation takes.
    WrongKind = 3, "the object is of the wrong kind for this operation";
    /// The interface has no operation of this number.
    UnknownOperation = 4, "the interface has no such operation";
    /// The endpoint does not speak this interface or version.
    UnknownInterface = 5, "the endpoint does not speak this interface";
    /// The arguments cannot be decoded.
    BadArguments = 6, "the arguments cannot be decoded";
    /// The session has used up what it may hold of some resource. Release something, then retry.
    Quota = 7, "the session's quota is used up";
    /// The deadline passed.
    Deadline = 9, "the deadline passed";
    /// The call was cancelled.
    Cancelled = 10, "the call was cancelled";
    /// The capability was revoked.
    Revoked = 11, "the capability was revoked";
    /// The host died. The next call through the same client finds its next incarnation.
    PeerDied = 12, "the host died";
    /// The session was closed in order, by either side.
    SessionClosed = 13, "the session is closed";
    /// The peer broke the protocol; the session is closed.
    ProtocolViolation = 14, "the peer broke the protocol";
    /// The lease names nothing that this holder has.
    StaleLease = 15, "the lease names nothing that the caller holds";
    /// The handle belongs to an earlier epoch of the endpoint. Get a new one.
    StaleEpoch = 16, "the handle belongs to an earlier epoch";
    /// There is no session, and none could be made.
    NotConnected = 17, "not connected";
    /// The reply does not fit the session's window.
    ReplyTooLarge = 18, "the reply does not fit the window";
    /// Policy forbids it.
    Refused = 19, "refused by policy";
    /// The capability's time is over.
    Expired = 21, "the capability has expired";
    /// More rights were asked for than the capability has.
    RightsExceeded = 22, "more rights were asked for than the capability has";
    /// The capability has a badge already, and a badge is set once.
    BadgeSet = 23, "the capability has a badge already";
    /// No ticket of these words was given to this client, or it was redeemed, has expired, or was revoked.
    NoSuchTicket = 24, "there is no such ticket for this client";
    /// The connection to the host's machine was lost and could not be made again in time.
    LinkLost = 25, "the connection to the host was lost";
    /// No earlier call that is outstanding, or was just answered, brings the capability that the call names.
    NotBrought = 26, "no earlier call brings the capability that it names";
}

/// The number of [`Cause::Busy`].
const BUSY: u16 = 8;
/// The number of [`Cause::Poisoned`].
const POISONED: u16 = 20;
/// The number of [`Cause::EarlierError`].
const EARLIER_ERROR: u16 = 27;
const QUARANTINED: &str = "the request is quarantined: its host crashed twice on it";

impl Cause {
    /// [`Cause::Busy`] of who cannot say for how long.
    pub const BUSY: Cause = Cause::Busy { retry_after_us: 0 };

    /// [`Cause::Busy`] of who can.
    pub fn busy_for(time: std::time::Duration) -> Cause {
        Cause::Busy { retry_after_us: u32::try_from(time.as_micros()).unwrap_or(u32::MAX) }
    }

    /// What a peer has to know beside the number: the time of [`Cause::Busy`], the crash of [`Cause::Poisoned`], the error of
    /// [`Cause::EarlierError`], else 0.
    pub const fn detail(self) -> u32 {
        match self {
            Cause::Busy { retry_after_us } => retry_after_us,
            Cause::Poisoned { crash } => crash,
            Cause::EarlierError { error } => error as u32,
            _ => 0,
        }
    }
}

/// Why a call failed, and whether it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// Whether the call had its effect.
    pub executed: Executed,
}

impl Failure {
    /// A failure before the effect.
    pub const fn not_executed(cause: Cause) -> Failure {
        Failure { cause, executed: Executed::No }
    }

    /// A failure after which nobody can say whether the call ran.
    pub const fn unknown(cause: Cause) -> Failure {
        Failure { cause, executed: Executed::Unknown }
    }

    /// The failure of a call that depended on one which failed like this: the same cause, and it did not run.
    pub const fn of_dependent(self) -> Failure {
        Failure::not_executed(self.cause)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let executed = match self.executed {
            Executed::No => "did not run",
            Executed::Yes => "ran",
            Executed::Unknown => "may have run",
        };
        write!(f, "{} (the call {executed})", self.cause)
    }
}

impl std::error::Error for Failure {}

/// What a typed call returns instead of its result: the operation's own error, or a failure of the call itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError<E> {
    /// The operation ran and answered with its own error.
    Operation(E),
    /// The call failed.
    Failed {
        /// Why.
        cause: Cause,
        /// Whether the call had its effect.
        executed: Executed,
    },
}

impl<E> CallError<E> {
    /// The failure, unless it is the operation's own error.
    pub fn failure(&self) -> Option<Failure> {
        match *self {
            CallError::Operation(_) => None,
            CallError::Failed { cause, executed } => Some(Failure { cause, executed }),
        }
    }
}

impl<E> From<Failure> for CallError<E> {
    fn from(failure: Failure) -> Self {
        CallError::Failed { cause: failure.cause, executed: failure.executed }
    }
}

impl<E: std::fmt::Display> std::fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Operation(error) => error.fmt(f),
            CallError::Failed { cause, executed } => Failure { cause: *cause, executed: *executed }.fmt(f),
        }
    }
}

impl<E: std::fmt::Debug + std::fmt::Display> std::error::Error for CallError<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_found_by_its_number_and_no_other_is() {
        for number in 1..=27 {
            assert_eq!(Cause::from_number(number, 0).map(Cause::number), Some(number));
        }
        assert_eq!(Cause::from_number(0, 0), None);
        assert_eq!(Cause::from_number(28, 0), None);
    }

    #[test]
    fn only_some_causes_have_a_detail() {
        let busy = Cause::busy_for(std::time::Duration::from_millis(3));
        assert_eq!(busy, Cause::Busy { retry_after_us: 3000 });
        assert_eq!(Cause::from_number(busy.number(), busy.detail()), Some(busy));
        assert_eq!(Cause::busy_for(std::time::Duration::MAX), Cause::Busy { retry_after_us: u32::MAX });
        let poisoned = Cause::Poisoned { crash: 7 };
        assert_eq!(Cause::from_number(poisoned.number(), poisoned.detail()), Some(poisoned));
        assert_eq!(poisoned.to_string(), "the request is quarantined: its host crashed twice on it (crash 7)");
        let earlier = Cause::EarlierError { error: u16::MAX };
        assert_eq!(Cause::from_number(earlier.number(), earlier.detail()), Some(earlier));
        assert_eq!(Cause::from_number(earlier.number(), 1 << 16), None);
        for number in (1..=26).filter(|number| *number != BUSY && *number != POISONED) {
            assert_eq!(Cause::from_number(number, 7), None);
        }
    }
}
