A=target/debug/atoll
rm -rf /tmp/m; mkdir /tmp/m; cd /tmp/m; cp $A a1; cp $A a2
export ATOLL_STATE=/tmp/m/state
$A up --detach --set httpd.listen=127.0.0.1:0 --set disk.size=256MiB >/dev/null
for c in disk fs net httpd; do for i in $(seq 25); do $A upgrade $c /tmp/m/a1 --json; $A upgrade $c /tmp/m/a2 --json; done; done
$A down > /dev/null
