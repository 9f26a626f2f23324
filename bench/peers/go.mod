module imserver/bench/peers

go 1.19
