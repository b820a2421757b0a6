//! Room on a full volume comes back when it may.

mod support;

use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions};
use support::format;

#[test]
fn room_comes_back_when_the_last_reader_of_a_removed_file_ends() {
    let environment = SimulatedEnvironment::new(3);
    let device = SimulatedDevice::new(2048, 3, Behaviour::default());
    let volume = format(&environment, &device, FormatOptions::default());
    environment.run(async {
        let root = volume.root();
        let large = vec![5; 1 << 20];
        let file = volume.create(root, b"large").await.unwrap().id;
        for part in 0..5_u64 {
            volume.write(file, part << 20, large.as_slice()).await.unwrap();
        }
        volume.sync().await.unwrap();
        let mut held = Vec::new();
        for part in 0..5_u64 {
            held.push(volume.read(file, part << 20, 1 << 20).await.unwrap().unwrap());
        }
        volume.unlink(root, b"large").await.unwrap();
        volume.sync().await.unwrap();

        // What is lent cannot be overwritten; nothing is changed meanwhile.
        let next = volume.create(root, b"next").await.unwrap().id;
        volume.sync().await.unwrap();
        let mut written = 0;
        while written < 5 && volume.write(next, written << 20, large.as_slice()).await.is_ok() {
            written += 1;
        }
        assert!(written < 5, "the blocks of a reader were dealt out");
        volume.sync().await.unwrap();
        // Perhaps only a part of it: an extent ends where the next block was taken.
        assert!(held[4].to_vec() == large[..held[4].length]);
        drop(held);
        for part in written..5 {
            assert_eq!(volume.write(next, part << 20, large.as_slice()).await, Ok(()));
        }
        assert_eq!(volume.write(next, 5 << 20, vec![1; 4 << 20].as_slice()).await, Err(Error::NoSpace));
    });
}
