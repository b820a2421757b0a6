@0x9d1b7f1d0e5c4a21;

interface Echo {
  echo @0 (bytes :Data) -> (bytes :Data);
}
