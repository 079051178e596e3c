"""The tasks whose running is measured."""

from django.tasks import task

from . import functions

block = task(functions.block)
no_op = task(functions.no_op)
sleep_on_thread = task(functions.sleep_on_thread)
take_long = task(functions.take_long)
echo = task(functions.echo)
nap = task(functions.nap)
oversleep = task(functions.oversleep)
count_primes = task(functions.count_primes)
end_process = task(functions.end_process)
