//! Frames of the socket link, as a test reads them that plays one of its ends.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use kernel_ipc::link::socket::frame;
use kernel_ipc::runtime;

/// Reads one frame, heartbeats apart, while the runtime runs on. `None`: the connection has ended.
pub async fn read_frame(socket: &mut TcpStream) -> Option<(u16, Vec<u8>)> {
    socket.set_nonblocking(true).expect("an option");
    loop {
        let mut header = [0; 8];
        read_exact(socket, &mut header).await?;
        let word = u64::from_le_bytes(header);
        let mut body = vec![0; word as u32 as usize];
        read_exact(socket, &mut body).await?;
        let kind = (word >> 32) as u16;
        if kind != frame::kind::HEARTBEAT {
            return Some((kind, body));
        }
    }
}

/// Fills all of `bytes`, while the runtime runs on. `None`: the connection has ended.
pub async fn read_exact(socket: &mut TcpStream, bytes: &mut [u8]) -> Option<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => return None,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                runtime::sleep(Duration::from_micros(200)).await;
            }
            Err(_) => return None,
        }
    }
    Some(())
}
