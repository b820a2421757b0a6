//! Where a session may listen.

use std::net::SocketAddr;

use protocol::net::ListenError;

/// The addresses that a session's capability allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// None: the manifest names no address, or something that is none.
    Nowhere,
    /// This one. Port 0 in the manifest stands for any port of its IP address: the client asks for port 0 to get a free
    /// one, and for that one again when it has to listen anew.
    At(SocketAddr),
}

impl Permission {
    /// Reads `{"tcp": "127.0.0.1:8080"}`.
    pub fn of(attenuation: &serde_json::Value) -> Permission {
        let address = attenuation.get("tcp").and_then(serde_json::Value::as_str).and_then(|text| text.parse().ok());
        address.map_or(Permission::Nowhere, Permission::At)
    }

    /// Checks an address that a client wants to listen on.
    ///
    /// # Errors
    /// `BadAddress` if it is none, `NotAllowed` if it is another than the capability's.
    pub fn check(self, asked: &str) -> Result<SocketAddr, ListenError> {
        let asked: SocketAddr = asked.parse().map_err(|_| ListenError::BadAddress)?;
        match self {
            Permission::At(allowed) if asked == allowed => Ok(asked),
            Permission::At(allowed) if allowed.port() == 0 && asked.ip() == allowed.ip() => Ok(asked),
            _ => Err(ListenError::NotAllowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_address_of_the_capability_is_allowed() {
        let permission = Permission::of(&json!({"tcp": "127.0.0.1:8080"}));
        assert_eq!(permission.check("127.0.0.1:8080"), Ok("127.0.0.1:8080".parse().unwrap()));
        for other in ["127.0.0.1:8081", "127.0.0.2:8080", "0.0.0.0:8080", "[::1]:8080", "127.0.0.1:0"] {
            assert_eq!(permission.check(other), Err(ListenError::NotAllowed), "{other}");
        }
        for bad in ["", "localhost:8080", "127.0.0.1", "8080"] {
            assert_eq!(permission.check(bad), Err(ListenError::BadAddress), "{bad}");
        }
    }

    #[test]
    fn port_zero_allows_any_port_of_its_address() {
        let permission = Permission::of(&json!({"tcp": "127.0.0.1:0"}));
        assert!(permission.check("127.0.0.1:0").is_ok() && permission.check("127.0.0.1:4711").is_ok());
        assert_eq!(permission.check("127.0.0.2:0"), Err(ListenError::NotAllowed));
    }

    #[test]
    fn without_an_address_nothing_is_allowed() {
        for attenuation in
            [json!(null), json!({}), json!({"tcp": 8080}), json!({"tcp": "everywhere"}), json!({"path": "/"})]
        {
            assert_eq!(
                Permission::of(&attenuation).check("127.0.0.1:8080"),
                Err(ListenError::NotAllowed),
                "{attenuation}"
            );
        }
    }
}
